"""How TensorFlow traces this package: mostly as it is, without AutoGraph.

AutoGraph rewrites each function that is traced, so that its `if` and `while` may depend on tensors.
Nothing here needs that, and rewriting takes longer than tracing. TensorFlow and Keras exempt their
own modules from it by rules, and so does this module.

Layers and functions of your own are rewritten as ever, also inside the zoo's models. The modules
that call methods of models of your own (`tfrz.zoo`, `tfrz.training`, the bases in `tfrz.models`)
are not exempt. A method that overrides one of DCN-V2, M3 and so on, other than `call`, is traced
as it is: use `tf.cond` there.
"""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

# The first rule that fits decides.
_CONVERTED = ("tfrz.models.base", "tfrz.models.click", "tfrz.models.next_item")
_EXEMPT = ("tfrz.data", "tfrz.export", "tfrz.layers", "tfrz.losses", "tfrz.metrics", "tfrz.models")


def add_rules() -> bool:
    """Exempts modules from AutoGraph.

    Returns:
      Whether this TensorFlow has rules.
    """
    try:
        from tensorflow.python.autograph.core import config

        rules = [config.Convert(name) for name in _CONVERTED]
        rules += [config.DoNotConvert(name) for name in _EXEMPT]
        config.CONVERSION_RULES = (*rules, *config.CONVERSION_RULES)
    except (ImportError, AttributeError, TypeError):
        logger.debug("this TensorFlow has no rules of AutoGraph: tracing takes longer")
        return False
    return True


add_rules()
