"""The set transformer: who may attend to whom, what a cache is worth, and where training starts."""

import pytest
import torch
from torch import nn

from bayesvision.methods.lcpfn.network import PrefixTransformer
from bayesvision.nn import attention as transformer
from bayesvision.nn.set_transformer import SetTransformer
from bayesvision.training.seeds import seeded

FEATURES, TARGETS, OUTPUTS = 3, 2, 5


def build(seed=0, layers=3, woken=True):
    """A network in float64; `woken` gives the blocks, which start as identities, something to say."""
    with seeded(seed):
        network = SetTransformer(FEATURES, TARGETS, OUTPUTS, width=16, layers=layers, heads=4)
        if woken:
            for block in network.blocks:
                for layer in (block.attention_out, block.forward_out):
                    nn.init.normal_(layer.weight, std=0.5)
    return network.double().requires_grad_(False)


def rows(*batch, n, m, seed=1):
    source = torch.Generator().manual_seed(seed)
    sizes = ((n, FEATURES), (n, TARGETS), (m, FEATURES))
    return [torch.randn(*batch, *size, generator=source, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("n", [0, 1, 6])
def test_remembered_and_direct_agree(batch, n):
    network = build()
    x, y, query = rows(*batch, n=n, m=4)
    direct = network(x, y, query)
    assert direct.shape == (*batch, 4, OUTPUTS)
    torch.testing.assert_close(network.decode(query, network.encode(x, y)), direct)
    single = network.float()
    x, y, query = (part.float() for part in (x, y, query))
    torch.testing.assert_close(single.decode(query, single.encode(x, y)), single(x, y, query), rtol=1e-5, atol=1e-5)


def test_every_member_of_a_batch_stands_alone():
    network = build()
    x, y, query = rows(2, 3, n=5, m=4)
    together = network(x, y, query)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(network(x[i, j], y[i, j], query[i, j]), together[i, j])


def test_one_context_serves_batches_of_queries():
    network = build()
    x, y, _ = rows(n=5, m=4)
    query = rows(2, 3, n=0, m=4)[2]
    cache = network.encode(x, y)
    torch.testing.assert_close(
        network.decode(query.flatten(0, 2), cache).unflatten(0, (2, 3, 4)), network.decode(query, cache)
    )


def test_other_queries_do_not_matter():
    network = build()
    x, y, query = rows(n=6, m=5)
    together = network(x, y, query)
    for i in range(5):
        torch.testing.assert_close(network(x, y, query[i : i + 1]), together[i : i + 1])
    torch.testing.assert_close(network(x, y, query.flip(0)), together.flip(0))


def test_the_order_of_the_context_does_not_matter_but_its_pairs_do():
    network = build()
    x, y, query = rows(n=6, m=5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = network(x, y, query)
    torch.testing.assert_close(network(x[order], y[order], query), expected)
    assert (network(x[order], y, query) - expected).abs().max() > 1e-3
    assert (network(x[:5], y[:5], query) - expected).abs().max() > 1e-3


def test_gradients_show_who_attends_to_whom():
    network = build()
    x, y, query = (part.requires_grad_() for part in rows(n=4, m=3))
    raw = network(x, y, query)
    for i in range(3):
        to_x, to_y, to_query = torch.autograd.grad(raw[i].sum(), (x, y, query), retain_graph=True)
        assert (to_x != 0).any(-1).all()  # every context row speaks to every query
        assert (to_y != 0).any(-1).all()
        assert (to_query[i] != 0).any()
        assert not to_query[torch.arange(3) != i].any()  # no query hears another
    seen = []
    handle = network.blocks[-1].register_forward_pre_hook(lambda block, given: seen.append(given[0]))
    network(x, y, query)
    handle.remove()
    (to_query,) = torch.autograd.grad(seen[0][:5].sum(), query, allow_unused=True)
    assert to_query is None or not to_query.any()  # no context token hears a query


def test_no_mask_is_built_and_only_context_is_attended_to(monkeypatch):
    calls = []
    attention = transformer.scaled_dot_product_attention

    def spy(query, key, value, *rest, **options):
        calls.append((query.shape[-2], key.shape[-2], rest, options))
        return attention(query, key, value, *rest, **options)

    monkeypatch.setattr(transformer, "scaled_dot_product_attention", spy)
    network, (x, y, query) = build(layers=2), rows(n=6, m=50)
    network(x, y, query)
    assert calls == [(57, 7, (None,), {})] * 2  # 6 rows, the prior token and 50 queries look at 7 tokens
    calls.clear()
    cache = network.encode(x, y)
    assert calls == [(7, 7, (None,), {})]  # the last block needs the context's keys and values only
    assert [keys.shape for keys, _ in cache] == [(4, 7, 4)] * 2
    calls.clear()
    network.decode(query, cache)
    assert calls == [(50, 7, (None,), {})] * 2


def test_an_empty_context_is_the_prior_token():
    network = build()
    x, y, query = rows(n=0, m=4)
    before = network(x, y, query)
    assert torch.isfinite(before).all()
    assert before.std(0).min() > 1e-4  # queries still differ
    with torch.no_grad():
        network.prior_token.neg_()  # a shift would vanish in the norms
    assert (network(x, y, query) - before).abs().min() > 1e-4
    x, y, query = rows(n=4, m=4)
    with_rows = network(x, y, query)
    with torch.no_grad():
        network.prior_token.neg_()
    assert (network(x, y, query) - with_rows).abs().max() > 1e-4  # it is attended to beside rows, too


def test_blocks_start_as_the_identity():
    network = build(woken=False)
    x, y, query = rows(n=6, m=4)
    tokens = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for block in network.blocks:
        assert torch.equal(block(tokens, *block.keys_values(tokens)), tokens)
    torch.testing.assert_close(network(x, y, query), network(x[:0], y[:0], query))  # no context is heard yet
    for parameter in network.parameters():
        parameter.requires_grad_()
    network(x, y, query).square().sum().backward()
    for block in network.blocks:  # but the first step can wake every block
        assert block.attention_out.weight.grad.abs().max() > 0
        assert block.forward_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_weights_are_a_function_of_the_seed_alone(kind):
    expected = build(woken=False).state_dict()
    torch.set_default_dtype(kind)
    try:
        with seeded(0):
            network = SetTransformer(FEATURES, TARGETS, OUTPUTS, width=16, layers=3, heads=4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    for name, value in network.state_dict().items():
        assert torch.equal(value.double(), expected[name]), name
    assert not torch.equal(build(seed=1).embed_x.weight, expected["embed_x.weight"])


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 16 and 3"):
        SetTransformer(1, 1, 1, width=16, layers=1, heads=3)


# The transformer over prefixes


def prefixes():
    torch.manual_seed(0)
    network = PrefixTransformer(features=3, queries=2, outputs=4, width=16, layers=2, heads=4, readers=1).double()
    for p in network.parameters():  # the initial blocks are the identity
        torch.nn.init.normal_(p, std=0.3)
    return network


def test_every_prefix_has_the_state_that_it_has_alone():
    network, rows = prefixes(), torch.randn(5, 7, 3, dtype=torch.float64)
    states, _ = network.encode(rows)
    assert states.shape == (5, 8, 16)
    for n in (0, 1, 4, 7):
        alone, _ = network.encode(rows[:, :n])
        torch.testing.assert_close(states[:, n], alone[:, -1])
    changed = rows.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(network.encode(changed)[0][:, :5], states[:, :5])
    assert not torch.allclose(network.encode(changed)[0][:, 5:], states[:, 5:])


@pytest.mark.parametrize("split", [1, 3, 6])
def test_a_grown_cache_is_the_whole_one(split):
    network, rows = prefixes(), torch.randn(2, 7, 3, dtype=torch.float64)
    states, cache = network.encode(rows)
    first, part = network.encode(rows[:, :split])
    second, grown = network.encode(rows[:, split:], part)
    torch.testing.assert_close(torch.cat([first, second], -2), states)
    for (keys, values), (k, v) in zip(cache, grown, strict=True):
        torch.testing.assert_close(keys, k)
        torch.testing.assert_close(values, v)


def test_a_query_is_read_from_its_state_alone():
    network = prefixes()
    states, queries = torch.randn(3, 1, 16, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    out = network.read(states, queries)
    assert out.shape == (3, 5, 4)
    torch.testing.assert_close(out[1, 2], network.read(states[1, 0], queries[2]))
