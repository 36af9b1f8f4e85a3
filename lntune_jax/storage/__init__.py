"""What a directory of ours is made of: written whole, sealed JSON, arrays with checksums."""
