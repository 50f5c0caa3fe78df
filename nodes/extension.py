"""The nodes of the pack, as ComfyUI asks for them."""

from comfy_api.latest import ComfyExtension

from .attention import SVGEARAttention
from .calibrate import SVGEARCalibrate
from .compare import SVGEARCompare
from .load_calibration import SVGEARLoadCalibration
from .report import SVGEARReport
from .routed_blocks import SVGEARRoutedBlocks
from .save_calibration import SVGEARSaveCalibration


class SVGEARExtension(ComfyExtension):
    """The nodes of the pack."""

    async def get_node_list(self):
        return [
            SVGEARAttention,
            SVGEARRoutedBlocks,
            SVGEARReport,
            SVGEARCompare,
            SVGEARCalibrate,
            SVGEARSaveCalibration,
            SVGEARLoadCalibration,
        ]
