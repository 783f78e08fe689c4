"""Words in the names of metrics, and which way what they name gets better."""

__all__ = ["ENDINGS", "LARGER", "SMALLER", "words"]


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


LARGER = words(
    "acc accuracy auc auroc auprc aupr ap map f1 fbeta precision recall sensitivity specificity tpr tnr bleu rouge "
    "rougel meteor chrf r2 iou miou jaccard dice ssim psnr mcc kappa ndcg mrr hits top likelihood loglikelihood loglik "
    "elbo evidence reward return pearson spearman correlation purity silhouette"
)
SMALLER = words(
    "loss error err mae mse rmse msle rmsle mape smape wape nll perplexity ppl bpb bpc bpd wer cer ter mer eer kl kld "
    "divergence bce crossentropy xent logloss mlogloss merror brier hinge huber deviance fid crps regret distance "
    "residual fpr fnr"
)
ENDINGS = ("loss", "error", "crossentropy")  # of words that name a loss
