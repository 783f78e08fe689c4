"""What `predict` returns: marginal distributions with `batch_shape` equal to the target's shape."""

from bayesvision.distributions.bar import Bar as Bar
from bayesvision.distributions.base import Continuous as Continuous
from bayesvision.distributions.base import Discrete as Discrete
from bayesvision.distributions.families import Bernoulli as Bernoulli
from bayesvision.distributions.families import Categorical as Categorical
from bayesvision.distributions.families import GeneralizedNormal as GeneralizedNormal
from bayesvision.distributions.families import Mixture as Mixture
from bayesvision.distributions.families import Normal as Normal
from bayesvision.distributions.rescaled import Rescaled as Rescaled
from bayesvision.distributions.student import StudentT as StudentT

Predictive = Continuous | Discrete
