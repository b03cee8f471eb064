"""Ground floor: errors, configuration, hashing, records, atomic writes, progress."""
