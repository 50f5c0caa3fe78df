"""The nodes of the pack, as ComfyUI asks for them."""

from comfy_api.latest import ComfyExtension

from .attention import SVGEARAttention
from .calibrate import SVGEARCalibrate
from .compare import SVGEARCompare
from .custom_settings import SVGEARCustomSettings
from .gpu_check import SVGEARGPUCheck
from .load_calibration import SVGEARLoadCalibration
from .raylight import SVGEARRaylight
from .raylight_report import SVGEARRaylightReport
from .record import SVGEARRecord
from .report import SVGEARReport
from .routed_blocks import SVGEARRoutedBlocks
from .save_calibration import SVGEARSaveCalibration
from .schedule import SVGEARSchedule


class SVGEARExtension(ComfyExtension):
    """The nodes of the pack."""

    async def get_node_list(self):
        return [
            SVGEARAttention,
            SVGEARCustomSettings,
            SVGEARSchedule,
            SVGEARRecord,
            SVGEARRoutedBlocks,
            SVGEARReport,
            SVGEARCompare,
            SVGEARCalibrate,
            SVGEARSaveCalibration,
            SVGEARLoadCalibration,
            SVGEARGPUCheck,
            SVGEARRaylight,
            SVGEARRaylightReport,
        ]
