"""The vendors' own compilers, for devices that are not here: what they make of our programs.

All numbers are the compilers' estimates and counts. Nothing was run, and none of them is a time
that was measured.
"""
