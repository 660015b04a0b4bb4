"""Networks: mathematics only; no mesh, and no key is drawn inside."""
