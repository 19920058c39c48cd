"""Chains of attacks: what each attacks only after others, and so leaves out whom they have broken."""

from collections.abc import Collection, Mapping, Sequence

from fsr_lab.core.record import Asked
from fsr_lab.core.suggest import unknown


def ordered(
    chains: Mapping[str, Sequence[str]],
    after: Mapping[str, Sequence[str]],
    attacks: Collection[str],
    families: Collection[str],
) -> dict[str, Asked]:
    """Return what goes before each chain and what is its own, each chain after all that it waits for.

    Args:
        chains: {name: attacks and families in order}. A family that stands in none is a chain of its own name.
        after: {chain: attacks, families and chains whose victims it leaves out}, and theirs whom those leave out: an
            attack of a chain stands for the chain up to it.
        attacks: names of all attacks, families among them.
        families: names of the families.

    Raises:
        ValueError: a name that is not there, an attack in two chains, a chain of no attack, a chain named like a family
            of other attacks, chains that wait for each other.
    """
    own = {name: tuple(members) for name, members in chains.items()}
    _check(own, attacks, families)
    chained = {member for members in own.values() for member in members}
    own |= {family: (family,) for family in attacks if family in families and family not in chained}
    _check_after(after, own, attacks)
    owner = {member: name for name, members in own.items() for member in members}
    known: dict[str, Asked] = {}

    def asked(name: str, way: tuple[str, ...] = ()) -> Asked:
        if name in way:
            raise ValueError(f"chains wait for each other: {' after '.join((*way, name))}; leave out one of after=")
        if name not in known:
            waits = (each for entry in after.get(name, ()) for each in expanded(entry, (*way, name)))
            known[name] = Asked(tuple(dict.fromkeys(waits)), own[name])
        return known[name]

    def expanded(entry: str, way: tuple[str, ...]) -> tuple[str, ...]:
        if entry not in own and entry not in owner:
            return (entry,)  # it is run on every sample
        before, members = asked(entry if entry in own else owner[entry], way)
        return before + (members if entry in own else members[: members.index(entry) + 1])

    for name in own:
        asked(name)
    return known


def with_families(asked: Mapping[str, Asked], families: Collection[str]) -> dict[str, Asked]:
    """Return the chains, each followed by the families in it as the stretches of it that they are."""
    found: dict[str, Asked] = {}
    for name, (before, own) in asked.items():
        found[name] = asked[name]
        stretches = {each: Asked(before + own[:place], (each,)) for place, each in enumerate(own) if each in families}
        found |= {family: stretch for family, stretch in stretches.items() if family != name}
    return found


def _check(own: Mapping[str, tuple[str, ...]], attacks: Collection[str], families: Collection[str]) -> None:
    members = [member for chain in own.values() for member in chain]
    for member in members:
        if member not in attacks:
            raise ValueError(unknown("attack of this evaluation", member, attacks))
        if members.count(member) > 1:
            raise ValueError(f"{member!r} stands in two chains; give it a second name for the second one")
    for name, chain in own.items():
        if name in families and chain != (name,):
            raise ValueError(f"{name!r} names a family and a chain of other attacks; give the chain another name")


def _check_after(
    after: Mapping[str, Sequence[str]], own: Mapping[str, tuple[str, ...]], attacks: Collection[str]
) -> None:
    for name, members in own.items():
        if not members and not after.get(name):
            raise ValueError(f"the chain {name!r} has no attack, and comes after none; leave it out")
    for name, entries in after.items():
        if name not in own:
            cure = f"; {name!r} is an attack: say in chains= which chain it begins" if name in attacks else ""
            raise ValueError(f"after: {unknown('chain of this evaluation', name, own)}{cure}")
        for entry in entries:
            if entry not in own and entry not in attacks:
                known = [*attacks, *own]
                raise ValueError(f"after {name!r}: {unknown('attack or chain of this evaluation', entry, known)}")
