from fsr_lab.core.suggest import close_names, unknown

LAYERS = ["conv1", "layer1", "layer2", "layer3", "layer4", "layer4.0", "layer4.1", "fc"]


def test_the_nearest_name_comes_first():
    near = close_names("layr4", LAYERS)
    assert near[0] == "layer4"
    assert "fc" not in near
    assert len(near) <= 5
    assert close_names("layer4", LAYERS, count=1) == ["layer4"]


def test_the_message_names_neighbours():
    message = unknown("layer", "layr4", LAYERS)
    assert message.startswith("no layer named 'layr4'; close names: ['layer4',")
    assert "fc" not in message
    assert "\n" not in message


def test_without_a_neighbour_all_names_are_told():
    assert unknown("norm", "zzz", iter(["linf", "l2"])) == "no norm named 'zzz'; there are: ['l2', 'linf']"


def test_nothing_known_is_no_crash():
    assert unknown("attack", "pgd", []) == "no attack named 'pgd'; there are: []"
