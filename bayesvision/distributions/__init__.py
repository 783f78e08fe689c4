"""What `predict` returns: marginal distributions with `batch_shape` equal to the target's shape."""

from bayesvision.distributions.bar import Bar as Bar
from bayesvision.distributions.base import Continuous as Continuous
from bayesvision.distributions.base import Discrete as Discrete
from bayesvision.distributions.categorical import Bernoulli as Bernoulli
from bayesvision.distributions.categorical import Categorical as Categorical
from bayesvision.distributions.gaussian_mixture import GaussianMixture as GaussianMixture
from bayesvision.distributions.generalized_normal import GeneralizedNormal as GeneralizedNormal
from bayesvision.distributions.mixture import Mixture as Mixture
from bayesvision.distributions.normal import Normal as Normal
from bayesvision.distributions.student_t import StudentT as StudentT
from bayesvision.distributions.transformed import TruncatedTransformed as TruncatedTransformed
from bayesvision.distributions.transformed import within as within
from bayesvision.distributions.weighted_draws import WeightedDraws as WeightedDraws

Predictive = Continuous | Discrete
