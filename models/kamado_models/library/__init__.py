"""Models that a library's own code runs, one request at a time: what families of them share."""
