"""Post-training quantisation: calibration, repair, and insertion of quantize and dequantize.

made = quantize(graph, batches, "int8")     # or a Recipe; the graph after the pipeline `default`
made.graph, made.report
"""

from secateur.passes.quantize.driver import Quantized as Quantized
from secateur.passes.quantize.driver import quantize as quantize
from secateur.passes.quantize.recipe import RECIPES as RECIPES
from secateur.passes.quantize.recipe import Recipe as Recipe
from secateur.passes.quantize.recipe import recipe_of as recipe_of
from secateur.passes.quantize.sensitivity import Culprit as Culprit
from secateur.passes.quantize.sensitivity import sensitivity as sensitivity
from secateur.passes.quantize.sensitivity import without as without
