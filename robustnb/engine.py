"The name that `robustnb.warm` had in version 0.1."
from .core import moved

moved(__name__, 'warm')
