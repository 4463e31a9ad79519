"The name that `robustnb.interop` had in version 0.1."
from .core import moved

moved(__name__, 'interop')
