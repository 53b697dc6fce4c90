//! Dropout whose random numbers are made where they are used, and made again for the gradient instead of being kept.

use crate::error::Error;
use crate::exec::Exec;
use crate::rng;

/// Values in a task; a whole number of [`GROUP`]s.
const TASK: usize = 65_536;
/// Words of random bits that are made together.
const WORDS: usize = 8;
/// Values that they decide on: four a word, 16 bits each.
const GROUP: usize = 4 * WORDS;
/// What a share of dropped values is counted in.
pub const LEVELS: u32 = 1 << 16;

/// Which values live besides those that chance keeps.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a> {
    /// All.
    Open,
    /// Positive ones: a ReLU before the dropout.
    Relu,
    /// Those where these numbers are positive.
    Of(&'a [f32]),
}

/// What is dropped: `dropped` in [`LEVELS`], each value by numbers that belong to (`seed`, its place) alone.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    pub seed: u64,
    /// Below [`LEVELS`].
    pub dropped: u16,
}

impl Chance {
    /// What the values that are kept are multiplied by, so that means stay.
    fn scale(self) -> f32 {
        LEVELS as f32 / (LEVELS - u32::from(self.dropped)) as f32
    }
}

/// `values`, dropped and scaled, to `out`; those of `out` itself for `None`.
///
/// The gradient is the same of the gradient, with what came out as its gate where there was one.
pub fn dropout(exec: Exec, values: Option<&[f32]>, out: &mut [f32], gate: Gate, chance: Chance) -> Result<(), Error> {
    let gates = match gate {
        Gate::Of(gates) => gates.len(),
        _ => out.len(),
    };
    let given = values.map_or(out.len(), <[f32]>::len);
    if given != out.len() || gates != out.len() {
        return Err(Error::Shape(format!(
            "{given} values and a gate of {gates} for {} results",
            out.len()
        )));
    }
    let key = rng::key(chance.seed, 0xD209);
    exec.each(
        out.chunks_mut(TASK).enumerate(),
        || (),
        |(), (task, out)| {
            let span = task * TASK..task * TASK + out.len();
            if let Some(values) = values {
                out.copy_from_slice(&values[span.clone()]);
            }
            let gate = match gate {
                Gate::Of(gates) => Gate::Of(&gates[span]),
                other => other,
            };
            let first = (task * TASK / GROUP * WORDS) as u64;
            exec.simd.dropout(out, gate, key, first, chance.dropped, chance.scale());
            Ok(())
        },
    )
}

/// Values whose words begin at number `first`.
#[inline(always)]
pub(crate) fn part(values: &mut [f32], gate: Gate, key: u64, first: u64, dropped: u16, scale: f32) {
    let thin = Thin {
        key,
        first,
        dropped: u64::from(dropped),
        scale,
    };
    match gate {
        Gate::Open => thin.all::<OPEN>(values, &[]),
        Gate::Relu => thin.all::<RELU>(values, &[]),
        Gate::Of(gates) => thin.all::<GATED>(values, gates),
    }
}

const OPEN: u8 = 0;
const RELU: u8 = 1;
const GATED: u8 = 2;

struct Thin {
    key: u64,
    first: u64,
    dropped: u64,
    scale: f32,
}

impl Thin {
    #[inline(always)]
    fn all<const GATE: u8>(&self, values: &mut [f32], gates: &[f32]) {
        let (groups, rest) = values.as_chunks_mut::<GROUP>();
        let (gate_groups, rest_of_gates) = gates.as_chunks::<GROUP>();
        let count = groups.len();
        for (number, values) in groups.iter_mut().enumerate() {
            let gates = if GATE == GATED {
                &gate_groups[number]
            } else {
                &[0.0; GROUP]
            };
            self.group::<GATE>(number, values, gates);
        }
        let (mut last, mut gate) = ([0.0; GROUP], [0.0; GROUP]);
        last[..rest.len()].copy_from_slice(rest);
        gate[..rest_of_gates.len()].copy_from_slice(rest_of_gates);
        self.group::<GATE>(count, &mut last, &gate);
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// Value `8 q + l` of a group is decided by bits `16 q` to `16 q + 15` of its word `l`. Nothing here branches.
    #[inline(always)]
    fn group<const GATE: u8>(&self, number: usize, values: &mut [f32; GROUP], gates: &[f32; GROUP]) {
        let first = self.first + (number * WORDS) as u64;
        let words: [u64; WORDS] = std::array::from_fn(|l| rng::at(self.key, first + l as u64));
        for q in 0..GROUP / WORDS {
            for l in 0..WORDS {
                let (value, gate) = (values[q * WORDS + l], gates[q * WORDS + l]);
                let dropped = ((words[l] >> (16 * q)) & 0xFFFF) < self.dropped;
                let shut = match GATE {
                    OPEN => false,
                    RELU => value <= 0.0, // not of NaN, which is to show
                    _ => gate <= 0.0,
                };
                values[q * WORDS + l] = if dropped | shut { 0.0 } else { value * self.scale };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::SimdPath;

    fn chance(dropped: u16) -> Chance {
        Chance { seed: 7, dropped }
    }

    #[test]
    fn shares_and_means_are_kept() {
        for dropped in [0, 6_554, 32_768, 58_982] {
            let mut values = vec![1.0f32; 400_001];
            dropout(Exec::serial(), None, &mut values, Gate::Open, chance(dropped)).expect("sizes agree");
            let zeros = values.iter().filter(|&&x| x == 0.0).count() as f64 / values.len() as f64;
            assert!((zeros - f64::from(dropped) / 65_536.0).abs() < 0.003, "{zeros}");
            let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
            assert!((mean - 1.0).abs() < 0.015, "{mean}");
        }
    }

    #[test]
    fn neighbours_are_independent() {
        let mut values = vec![1.0f32; 1 << 20];
        dropout(Exec::serial(), None, &mut values, Gate::Open, chance(32_768)).expect("sizes agree");
        for lag in [1, 2, 7, 8, 16, 24, 32, 64] {
            let pairs = values.iter().zip(&values[lag..]);
            let both = pairs.filter(|(&x, &y)| x > 0.0 && y > 0.0).count() as f64 / (values.len() - lag) as f64;
            assert!((both - 0.25).abs() < 0.003, "{both} at {lag}");
        }
    }

    #[test]
    fn all_paths_and_threads_agree_with_the_definition() {
        let team = crate::Team::new(2).expect("two threads");
        for count in [0, 1, 31, 32, 33, 1_000, 3 * TASK + 5] {
            let numbers = |seed: u64| -> Vec<f32> {
                let word = |c| crate::rng::unit(crate::rng::at(seed, c)) as f32 - 0.5;
                (0..count as u64).map(word).collect()
            };
            let (values, gates) = (numbers(1), numbers(2));
            let mut all = vec![1.0f32; count];
            dropout(Exec::serial(), None, &mut all, Gate::Open, chance(20_000)).expect("sizes agree");
            for gate in [Gate::Open, Gate::Relu, Gate::Of(&gates)] {
                let expected: Vec<f32> = (0..count)
                    .map(|n| match gate {
                        Gate::Open => all[n] * values[n],
                        Gate::Relu => all[n] * values[n].max(0.0),
                        Gate::Of(gates) if gates[n] > 0.0 => all[n] * values[n],
                        Gate::Of(_) => 0.0,
                    })
                    .collect();
                for name in SimdPath::NAMES {
                    let Some(simd) = SimdPath::named(name) else { continue };
                    for team in [None, Some(&team)] {
                        let exec = Exec {
                            team,
                            simd,
                            ..Exec::default()
                        };
                        let mut here = values.clone();
                        dropout(exec, None, &mut here, gate, chance(20_000)).expect("sizes agree");
                        assert_eq!(here, expected, "{name}");
                        let mut there = vec![9.0; count];
                        dropout(exec, Some(&values), &mut there, gate, chance(20_000)).expect("sizes agree");
                        assert_eq!(there, expected, "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_diverged_shows_and_sizes_must_agree() {
        let mut values = [f32::NAN, -1.0, 2.0];
        dropout(Exec::serial(), None, &mut values, Gate::Relu, chance(0)).expect("sizes agree");
        assert!(values[0].is_nan());
        assert_eq!(values[1..], [0.0, 2.0]);
        assert!(dropout(Exec::serial(), Some(&[0.0; 2]), &mut values, Gate::Open, chance(0)).is_err());
        assert!(dropout(Exec::serial(), None, &mut values, Gate::Of(&[0.0; 2]), chance(0)).is_err());
    }
}
