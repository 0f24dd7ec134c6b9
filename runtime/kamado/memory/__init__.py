"""Device facts, plan arithmetic, block pool, ledger, residency. No torch, but for the few device queries and
for measuring rates."""
