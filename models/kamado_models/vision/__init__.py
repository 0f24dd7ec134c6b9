"""Models that say what is where in a picture: depth, segments, poses."""
