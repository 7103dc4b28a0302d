"""One file for each family of open decoders; :func:`mm1.interop.family.families` finds them all."""
