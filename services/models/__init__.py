"""Model families: a model id or directory becomes a module and its processor on a device."""
