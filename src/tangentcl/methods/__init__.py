"""Continual learners: one method, one file. `METHODS` maps the names used in experiment files to classes."""

from __future__ import annotations

from tangentcl.errors import ConfigError, imported_class
from tangentcl.methods.analytic import Analytic
from tangentcl.methods.aper import APER
from tangentcl.methods.coda_prompt import CODAPrompt
from tangentcl.methods.derpp import DERPP
from tangentcl.methods.dualprompt import DualPrompt
from tangentcl.methods.ease import EASE
from tangentcl.methods.ewc import EWC
from tangentcl.methods.ewc_lora import EWCLoRA
from tangentcl.methods.fecam import FeCAM
from tangentcl.methods.finetune import Finetune
from tangentcl.methods.gpm import GPM
from tangentcl.methods.inflora import InfLoRA
from tangentcl.methods.joint import Joint
from tangentcl.methods.l2p import L2P
from tangentcl.methods.l2sp import L2SP
from tangentcl.methods.lae import LAE
from tangentcl.methods.loranpac import LoRanPAC
from tangentcl.methods.lwf import LwF
from tangentcl.methods.method import Method
from tangentcl.methods.ncm import NCM
from tangentcl.methods.ntk_fscil import NTKFSCIL
from tangentcl.methods.ntkcl import NTKCL
from tangentcl.methods.nystrom import Nystrom
from tangentcl.methods.ogd import OGD
from tangentcl.methods.olora import OLoRA
from tangentcl.methods.prompted import Prompted
from tangentcl.methods.ranpac import RanPAC
from tangentcl.methods.replay import Replay
from tangentcl.methods.sdlora import SDLoRA
from tangentcl.methods.slca import SLCA
from tangentcl.methods.slda import SLDA
from tangentcl.methods.spectral import Spectral

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "ncm": NCM,
    "joint": Joint,
    "replay": Replay,
    "derpp": DERPP,
    "l2sp": L2SP,
    "ewc": EWC,
    "ewc_lora": EWCLoRA,
    "lwf": LwF,
    "ntkcl": NTKCL,
    "ranpac": RanPAC,
    "slda": SLDA,
    "fecam": FeCAM,
    "nystrom": Nystrom,
    "loranpac": LoRanPAC,
    "ntk_fscil": NTKFSCIL,
    "spectral": Spectral,
    "gpm": GPM,
    "ogd": OGD,
    "olora": OLoRA,
    "inflora": InfLoRA,
    "sdlora": SDLoRA,
    "slca": SLCA,
    "lae": LAE,
    "aper": APER,
    "ease": EASE,
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "coda_prompt": CODAPrompt,
}

__all__ = [
    "APER",
    "DERPP",
    "EASE",
    "EWC",
    "GPM",
    "L2P",
    "L2SP",
    "LAE",
    "METHODS",
    "NCM",
    "NTKCL",
    "NTKFSCIL",
    "OGD",
    "SLCA",
    "SLDA",
    "Analytic",
    "CODAPrompt",
    "DualPrompt",
    "EWCLoRA",
    "FeCAM",
    "Finetune",
    "InfLoRA",
    "Joint",
    "LoRanPAC",
    "LwF",
    "Method",
    "Nystrom",
    "OLoRA",
    "Prompted",
    "RanPAC",
    "Replay",
    "SDLoRA",
    "Spectral",
    "method_class",
]


def method_class(name: str) -> type[Method]:
    """The class behind a name of `METHODS` or a ``"package.module:Class"``.

    Raises:
        ConfigError: unknown name, module that does not import, or not a `Method`.

    >>> method_class("ncm").__name__
    'NCM'
    """
    if name in METHODS:
        return METHODS[name]
    found = imported_class(name, "method", METHODS)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method {name!r} is not a subclass of tangentcl.methods.Method")
    return found
