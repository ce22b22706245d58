"""Where the images of a data set lie: walks, words for splits, tables of labels, and readings of a folder."""
