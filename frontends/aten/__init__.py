"""How each ATen operation becomes operations of the IR: one short row per overload, one file per family."""
