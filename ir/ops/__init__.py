"""The operations, one file a family. A file here is found by itself: there is no list to edit."""
