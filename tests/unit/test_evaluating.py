"""What a config says of an evaluation's chains and samples."""

import pytest
from omegaconf import OmegaConf

from fsr_lab.engine.evaluating import after, chains, samples


def config(early_exit=False, test_samples=None, **evaluation):
    whole = {"early_exit": early_exit, "keep_images": False, "test_samples": test_samples}
    return OmegaConf.create(whole | {"evaluation": {"attacks": {"fgsm": {}, "a1": {}}} | evaluation})


def test_chains_and_what_they_wait_for_are_plain():
    cfg = config(chains={"one": ["fgsm"]}, after={"a1": ["one"]})
    assert (chains(cfg), after(cfg)) == ({"one": ["fgsm"]}, {"a1": ["one"]})
    assert (chains(config()), after(config())) == ({}, {})


def test_with_early_exit_there_is_one_chain():
    cfg = config(early_exit=True, chains={"one": ["fgsm"]}, after={"a1": ["one"]})
    assert (chains(cfg), after(cfg)) == ({"worst case": ["fgsm", "a1"]}, {})


@pytest.mark.parametrize(
    ("of_all", "of_this", "least"), [(None, None, None), (9, None, 9), (None, 7, 7), (9, 7, 7), (5, 7, 5)]
)
def test_the_fewer_samples_count(of_all, of_this, least):
    given = {} if of_this is None else {"samples": of_this}
    assert samples(config(test_samples=of_all, **given)) == least
