"""What a posterior keeps of the rows it has seen."""

from torch import Tensor, nn

__all__ = ["Cache", "KVCache"]

Cache = tuple[tuple[Tensor, Tensor], ...]  # keys and values of a context, [*batch, heads, tokens, size] for each layer


class KVCache(nn.Module):
    """Keys and values of a context as buffers: they move with the module that holds them, and stay out of files."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = 0

    def store(self, cache: Cache) -> None:
        """Keep `cache` in place of what was kept before."""
        for k, (keys, values) in enumerate(cache):
            self.register_buffer(f"keys{k}", keys, persistent=False)
            self.register_buffer(f"values{k}", values, persistent=False)
        self.layers = len(cache)

    @property
    def cache(self) -> Cache:
        """What was kept; empty if nothing was."""
        return tuple((getattr(self, f"keys{k}"), getattr(self, f"values{k}")) for k in range(self.layers))
