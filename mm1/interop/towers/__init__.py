"""Image towers as others publish them, one file per layout; each says which encoder of ours it is and fills it."""
