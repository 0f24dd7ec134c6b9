"""What stays outside of a device: as little as need be, whole members of lists, evenly spread."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from kamado.memory.placement import NOTHING_OUTSIDE, WINDOW, blocks, place, same_blocks, spread


def layers(count: int, size: int = 10, *, prefix: str = "model.layers") -> dict[str, int]:
    return {f"{prefix}.{i}.{part}.weight": size // 2 for i in range(count) for part in ("attn", "mlp")}


def test_members_of_lists_are_blocks_in_the_order_of_their_numbers() -> None:
    sizes = {"embed.weight": 7, **layers(12), "norm.weight": 1}
    found = blocks(dict(sorted(sizes.items())))
    assert [block[0] for block in found] == [f"model.layers.{i}.attn.weight" for i in range(12)]
    assert all(len(block) == 2 for block in found)


def test_a_large_member_is_taken_by_its_own_members() -> None:
    inner = {f"down.2.attentions.0.blocks.{i}.weight": 10 for i in range(9)}
    sizes = {**inner, "down.2.attentions.0.proj.weight": 1, "down.0.weight": 1, "down.1.weight": 1}
    assert [["down.0.weight"], ["down.1.weight"], *([name] for name in inner)] == blocks(sizes)


def test_experts_are_not_taken_one_by_one() -> None:
    """Which of them run is not known before."""
    sizes = {f"layers.{i}.experts.{j}.weight": 10 for i in range(2) for j in range(4)}
    assert [len(block) for block in blocks(sizes)] == [4, 4]


def test_nothing_is_outside_where_there_is_room() -> None:
    sizes = layers(8)
    assert place([sizes], sum(sizes.values())) == NOTHING_OUTSIDE


def test_first_groups_go_first() -> None:
    first, second = layers(8, prefix="encoder.layers"), layers(8, prefix="unet.blocks")
    found = place([first, second], 8 * 10 + 5 * 10)
    assert found.outside and found.outside <= first.keys()


def test_few_blocks_are_not_worth_it() -> None:
    """The window would take as much as they do."""
    assert place([layers(2)], 0) == NOTHING_OUTSIDE


@example([1, 12, 12, 24], 0, 0)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(0, 50), st.integers(0, 2500))
def test_as_little_is_outside_as_need_be(counts: list[int], rest: int, room: int) -> None:
    sizes = {f"layers.{i}.weight": size for i, size in enumerate(counts)} | {"embed.weight": rest}
    found = place([sizes], room)
    everything = sum(sizes.values())
    assert found.outside_bytes == sum(sizes[name] for name in found.outside)
    assert found.window_bytes == WINDOW * max((sizes[name] for name in found.outside), default=0)
    held = everything - found.outside_bytes + found.window_bytes
    if everything <= room:
        assert not found.outside
    least = place([sizes], 0)
    assert held <= max(room, everything - least.outside_bytes + least.window_bytes) <= max(room, everything)
    # The same figures give the same answer from what they amount to: a load does what its plan said.
    assert place([sizes], held) == found or not found.outside


@given(st.integers(0, 100))
def test_beginnings_are_spread(count: int) -> None:
    order = spread(count)
    assert sorted(order) == list(range(count))
    half = sorted(order[: count // 2])
    assert all(later - earlier <= 4 for earlier, later in pairwise(half))


def test_blocks_of_other_names() -> None:
    stored = {f"blk.{i}.{part}": 1 for i in range(11) for part in ("q", "k")}
    loaded = [f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(11) for part in ("q", "k", "v")]
    chosen = frozenset({"blk.10.q", "blk.10.k", "blk.2.q"})
    found = same_blocks(chosen, stored, loaded)
    assert {name.split(".")[2] for name in found} == {"10", "2"} and len(found) == 6
