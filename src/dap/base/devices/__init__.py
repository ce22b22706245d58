"""What is known of the devices that torch computes on."""
