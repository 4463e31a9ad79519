"The name that `robustnb.train_many` had in version 0.1."
from .core import moved

moved(__name__, 'train_many')
