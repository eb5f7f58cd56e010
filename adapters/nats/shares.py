"""
Who should own which partition: pure, and the same wherever the same is known.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

__all__ = ["shares"]


def shares(count: int, owned: Mapping[str, AbstractSet[int]]) -> dict[int, str]:
    """
    Return the member for each of `count` partitions, given what each member owns now.

    Shares differ by one at most. Who owns something keeps as much of it as its share allows, so that a member that joins or
    leaves moves no more than it has to. Where two say that they own the same, the first by name is believed.
    """
    members = sorted(owned)
    if not members:
        return {}
    least, more = divmod(count, len(members))
    given: dict[int, str] = {}
    kept: dict[str, list[int]] = {}
    for member in members:
        kept[member] = sorted(part for part in owned[member] if 0 <= part < count and part not in given)
        given.update(dict.fromkeys(kept[member], member))
    # those that own most have the first claim on the larger shares
    quota: dict[str, int] = {}
    for member in sorted(members, key=lambda each: (-len(kept[each]), each)):
        quota[member] = least + (1 if more > 0 else 0)
        more -= 1
    plan: dict[int, str] = {}
    for member in members:
        plan.update(dict.fromkeys(kept[member][: quota[member]], member))
    have = {member: min(len(kept[member]), quota[member]) for member in members}
    for part in range(count):
        if part not in plan:
            taker = min(
                (each for each in members if have[each] < quota[each]), key=lambda each: (have[each], each)
            )
            plan[part] = taker
            have[taker] += 1
    return plan
