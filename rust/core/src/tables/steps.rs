//! Steps of Adam, and many of them at once.

pub(crate) const BETA1: f32 = 0.9;
pub(crate) const BETA2: f32 = 0.999;

/// The numbers of one step. With bias corrections c1 = 1 - β1^t and c2 = 1 - β2^t, `rate` is lr · √c2 / c1 and `eps` is
/// ε · √c2: θ − rate · m / (√v + eps) is Adam's θ − lr · (m / c1) / (√(v / c2) + ε) with one division less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    pub rate: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// Steps that are estimated at once.
pub(crate) const SPAN: usize = 32;

/// k steps without gradient in closed form.
///
/// With d = wd · θ as if θ stood still, m_j = d + (m - d) β1^j, and v decays. Σ m_j over the k steps is then m S + d (k - S) with
/// S = Σ β1^j; both parts are divided by √v + ε half way. The part of the decay is taken as the exponential that it is if v stands
/// still, so that it never carries θ past 0.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// The mean rate times S, and times wd (k - S).
    pub momentum: f32,
    pub shrinking: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// β1^k, β2^k, β2^((k + 1) / 2)
    pub decay1: f32,
    pub decay2: f32,
    pub half: f32,
}

/// Steps of a ledger, to be taken one by one; or for each of them the span that begins there.
pub(crate) enum Owed<'a> {
    Steps(&'a [AdamStep]),
    Spans(Vec<Span>),
}

impl<'a> Owed<'a> {
    pub fn new(steps: &'a [AdamStep], lazy: bool) -> Self {
        match lazy {
            false => Owed::Steps(steps),
            true => Owed::Spans(
                (0..steps.len())
                    .map(|from| Span::of(&steps[from..steps.len().min(from + SPAN)]))
                    .collect(),
            ),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Owed::Steps(steps) => steps.len(),
            Owed::Spans(spans) => spans.len(),
        }
    }
}

impl Span {
    fn of(steps: &[AdamStep]) -> Span {
        let count = steps.len() as f32;
        let mean = |part: fn(&AdamStep) -> f32| steps.iter().map(part).sum::<f32>() / count;
        let (mut decay1, mut decay2) = (1.0, 1.0);
        for _ in steps {
            decay1 *= BETA1;
            decay2 *= BETA2;
        }
        let (rate, weight_decay) = (mean(|step| step.rate), mean(|step| step.weight_decay));
        let sum = BETA1 * (1.0 - decay1) / (1.0 - BETA1);
        Span {
            momentum: rate * sum,
            shrinking: rate * weight_decay * (count - sum),
            eps: mean(|step| step.eps),
            weight_decay,
            decay1,
            decay2,
            half: (decay2 * BETA2).sqrt(),
        }
    }
}
