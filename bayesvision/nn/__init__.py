"""Networks that methods share: heads from raw output to distribution, attention, the set transformer."""
