"""Products in C for CPUs, where a compiler was there when Kamado was installed; and the same in torch."""
