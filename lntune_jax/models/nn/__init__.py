"""What models are made of: layers, attention, positions, stacks, and how they lie on a mesh."""
