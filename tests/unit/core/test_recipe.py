import json

import pytest

from temper.core.errors import UsageError
from temper.core.recipe import Recipe
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.techniques.fusion.batch_norm import BatchNormFusion
from temper.techniques.quantization.post_training import PostTrainingQuantization

RECIPE = Recipe(techniques=(BatchNormFusion(), PostTrainingQuantization(ranges="mse")), runtime=OnnxRuntime())


def test_the_json_form_is_the_recipe() -> None:
    again = Recipe.from_json(json.loads(json.dumps(RECIPE.to_json())))
    assert again == RECIPE
    assert hash(again) == hash(RECIPE)
    assert again.key == RECIPE.key
    assert str(RECIPE) == "fusion.batch_norm → quantization.post_training(ranges=mse) → onnxruntime"


def test_the_key_tells_recipes_apart() -> None:
    others = [
        Recipe(runtime=OnnxRuntime()),
        Recipe(runtime=OnnxRuntime(optimization="extended")),
        Recipe(techniques=(BatchNormFusion(),), runtime=OnnxRuntime()),
        Recipe(techniques=RECIPE.techniques[::-1], runtime=OnnxRuntime()),
        RECIPE,
    ]
    assert len({each.key for each in others}) == len(others)
    by_hand = {"runtime": {"name": "onnxruntime"}, "techniques": []}
    assert Recipe.from_json(by_hand).key == others[0].key


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "a recipe is"),
        ({"techniques": ["fusion"], "runtime": {"name": "onnxruntime"}}, "a recipe is"),
        ({"techniques": [{"name": "wishful"}], "runtime": {"name": "onnxruntime"}}, "no technique is called 'wishful'"),
        ({"techniques": [], "runtime": {"name": "abacus"}}, "no runtime is called 'abacus'; there are: .*onnxruntime"),
        ({"techniques": [], "runtime": {"name": "onnxruntime", "warp": 9}}, "has no knob warp"),
        ({"techniques": [], "runtime": {"name": "onnxruntime", "optimization": "most"}}, "is not one of all, extended"),
    ],
)
def test_what_is_no_recipe(fields: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe.from_json(fields)
