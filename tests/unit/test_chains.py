"""Chains wait for each other in one order, whatever order they are given in."""

import pytest

from fsr_lab.core.record import Asked
from fsr_lab.evaluation.chains import ordered, with_families

ATTACKS = ("fgsm", "pgd", "apgd", "square", "a1", "a2")
FAMILIES = ("a1", "a2")


def order(chains=(), after=(), attacks=ATTACKS, families=FAMILIES):
    return ordered(dict(chains), dict(after), attacks, families)


def test_without_anything_before_it_a_chain_is_its_own():
    assert order({"auto": ["apgd", "square"]}, attacks=ATTACKS[:4]) == {"auto": Asked((), ("apgd", "square"))}


def test_a_family_in_no_chain_is_one_of_its_name():
    assert order() == {"a1": Asked((), ("a1",)), "a2": Asked((), ("a2",))}
    assert list(order({"all": ["a2"]})) == ["all", "a1"]


def test_what_went_before_goes_all_the_way_back():
    found = order({"auto": ["apgd", "square"]}, {"a2": ["a1"], "a1": ["auto", "pgd"], "auto": ["fgsm"]})
    auto = ("fgsm", "apgd", "square")
    assert found["a1"] == Asked((*auto, "pgd"), ("a1",))
    assert found["a2"] == Asked((*auto, "pgd", "a1"), ("a2",))
    assert list(found) == ["auto", "a1", "a2"]


def test_the_order_of_work_is_not_that_of_the_arguments():
    chains = {"last": ["square"], "first": ["apgd"]}
    assert list(order(chains, {"last": ["first"]}, families=())) == ["first", "last"]


def test_an_attack_of_a_chain_stands_for_the_chain_up_to_it():
    found = order({"auto": ["apgd", "pgd", "square"]}, {"a1": ["pgd"], "auto": ["fgsm"]})
    assert found["a1"].before == ("fgsm", "apgd", "pgd")


def test_what_went_before_twice_is_there_once():
    found = order({"auto": ["apgd"]}, {"auto": ["fgsm"], "a1": ["auto", "fgsm"], "a2": ["fgsm", "a1", "auto"]})
    assert found["a2"].before == ("fgsm", "apgd", "a1")


def test_a_chain_may_name_what_others_ran_and_run_nothing_itself():
    found = order({"worst": []}, {"worst": ["fgsm", "a2"], "a2": ["a1"]})
    assert found["worst"] == Asked(("fgsm", "a1", "a2"), ())
    assert list(found) == ["a1", "a2", "worst"]


def test_a_family_within_a_chain_is_a_stretch_of_it():
    found = order({"all": ["pgd", "a1", "square", "a2"]}, {"all": ["fgsm"]})
    assert list(found) == ["all"]
    assert with_families(found, FAMILIES) == {
        "all": Asked(("fgsm",), ("pgd", "a1", "square", "a2")),
        "a1": Asked(("fgsm", "pgd"), ("a1",)),
        "a2": Asked(("fgsm", "pgd", "a1", "square"), ("a2",)),
    }
    assert with_families(order(), FAMILIES) == order()


@pytest.mark.parametrize(
    ("chains", "after", "message"),
    [
        ({"all": ["pgd", "pdg"]}, {}, "no attack of this evaluation named 'pdg'; close names: .*'pgd'"),
        ({"one": ["pgd"], "two": ["pgd"]}, {}, "'pgd' stands in two chains"),
        ({"one": ["a1"], "two": ["a1"]}, {}, "'a1' stands in two chains"),
        ({"one": ["pgd", "pgd"]}, {}, "'pgd' stands in two chains"),
        ({"a1": ["pgd"]}, {}, "'a1' names a family and a chain of other attacks"),
        ({"all": []}, {}, "the chain 'all' has no attack, and comes after none"),
        ({"auto": ["apgd"]}, {"aut": ["pgd"]}, "after: no chain of this evaluation named 'aut'; close names: .*'auto'"),
        ({"auto": ["apgd"]}, {"pgd": ["auto"]}, "'pgd' is an attack: say in chains= which chain it begins"),
        ({"auto": ["apgd"]}, {"auto": ["fgsn"]}, "after 'auto': no attack or chain .* named 'fgsn'; close .*'fgsm'"),
        ({}, {"a1": ["a2"], "a2": ["a1"]}, "chains wait for each other: a1 after a2 after a1"),
        ({"auto": ["apgd", "square"]}, {"auto": ["apgd"]}, "chains wait for each other: auto after auto"),
        ({"all": ["a1"], "one": ["pgd"]}, {"all": ["one"], "one": ["a1"]}, "all after one after all"),
    ],
)  # fmt: skip
def test_what_has_no_order_is_refused_in_one_line(chains, after, message):
    with pytest.raises(ValueError, match=message) as caught:
        order(chains, after)
    assert "\n" not in str(caught.value)
