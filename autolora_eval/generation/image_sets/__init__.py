"""Images made elsewhere: readers, matching, validation."""
