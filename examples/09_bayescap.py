"""
Uncertainty around a frozen network
===================================

A trained network restores images and says nothing about how sure it is. ``BayesCap`` puts a small network, the cap, on
its outputs and leaves the network as it is: the answers stay the same, bit for bit, and get a standard deviation at
every pixel.

The network here turns the mosaic of a camera's sensor into an image; its weights come from the package ``demosaicnet``
(``examples/demosaic.py``), the photographs from scikit-image.
"""

# %%
import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import bayesvision as bv

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="few steps")
smoke = parser.parse_args().smoke
torch.set_num_threads(1)

here = Path(__file__).parent if "__file__" in globals() else Path("../examples")
sys.path.insert(0, str(here))
from demosaic import build, mosaic, photographs

# %%
# Five photographs to learn from, one to calibrate on, one to ask about. Any loader of batches (x, y) will do; the
# network is asked once about each.

images = list(photographs(96 if smoke else 256).values())
pairs = [(mosaic(y).unsqueeze(0), y.unsqueeze(0)) for y in images]
asked, train, held = pairs[0], pairs[1:6], pairs[6:]

net = build()
steps = 20 if smoke else 300
cap = bv.BayesCap(net, reads=("output", "input"), crop=48, train=bv.Train(steps=steps, batch=8, lr=2e-3))
post = cap.fit(train, calibrate=held)
print({name: post.cap.metadata[name] for name in ("frozen parameters", "parameters", "seconds")})

# %%
# The prediction is a distribution of the shape of the image. Its mean is the network's answer.

x, y = asked
d = post.predict(x)
with torch.no_grad():
    print("same answer:", torch.equal(d.mean, net(x)))
print(f"90 % intervals hold {bv.metrics.coverage(d, y):.1%} of the pixels")

one = type(d)(*(getattr(d, name)[0] for name in d.arg_constraints))
bv.plots.uncertainty_maps(one, x[0], y[0], figure=plt.figure(layout="constrained"))
plt.show()

# %%
# Dropping the least certain pixels first leaves smaller errors, almost as small as dropping the greatest errors.

bv.plots.sparsification_curve({"cap": bv.metrics.sparsification(d, y)}, ax=plt.subplots()[1])
plt.show()

# %%
# Strange inputs can be told: the same mosaic with noise scores higher than without.

noise = 0.06 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
print(f"score {post.ood_score(x).item():.2f} as it is, {post.ood_score(x + noise).item():.2f} with noise")

# %%
# The cap is data alone and can be kept; it is put around the network again when it is wanted.

bv.save(post.cap, "cap.safetensors")
again = bv.BayesCap(net, reads=("output", "input")).wrap(bv.load("cap.safetensors"))
print("same spread:", torch.equal(again.predict(x).stddev, d.stddev))
Path("cap.safetensors").unlink()
