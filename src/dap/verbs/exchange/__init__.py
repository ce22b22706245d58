"""The functions behind the verbs that exchange sets with other tools."""
