"""How the leaves of a tree are called in transformers: rules, maps, tables, layers."""
