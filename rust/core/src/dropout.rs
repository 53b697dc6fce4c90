//! Dropout whose random numbers are made where they are used, and made again for the gradient instead of being kept.

use crate::error::Error;
use crate::exec::Exec;
use crate::rng;
use crate::simd::compiled;

/// Values in a task; a whole number of [`GROUP`]s.
const TASK: usize = 65_536;
/// Words of random bits that are made together.
const WORDS: usize = 8;
/// Values that they decide on: four a word, 16 bits each.
const GROUP: usize = 4 * WORDS;
/// What a share of dropped values is counted in.
pub const LEVELS: u32 = 1 << 16;

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

/// `values`, dropped and scaled, to `out`; 0 also where `gate` is 0 or less, as a ReLU before the dropout would make them with the
/// values as their own gate. NaN shuts no gate, so that it shows.
///
/// The gradient is the same of the gradient, with what came out as its gate where there was one.
pub fn dropout(exec: Exec, values: &[f32], out: &mut [f32], gate: Option<&[f32]>, chance: Chance) -> Result<(), Error> {
    let gates = gate.map_or(out.len(), <[f32]>::len);
    if values.len() != out.len() || gates != out.len() {
        return Err(Error::Shape(format!(
            "{} values and a gate of {gates} for {} results",
            values.len(),
            out.len()
        )));
    }
    let key = rng::key(chance.seed, 0xD209);
    exec.each(
        out.chunks_mut(TASK).zip(values.chunks(TASK)).enumerate(),
        || (),
        |(), (task, (out, values))| {
            out.copy_from_slice(values);
            let thin = Thin {
                key,
                first: (task * TASK / GROUP * WORDS) as u64,
                dropped: u64::from(chance.dropped),
                scale: chance.scale(),
            };
            let gate = gate.map(|gate| &gate[task * TASK..][..out.len()]);
            exec.simd.dropout(&thin, out, gate);
            Ok(())
        },
    )
}

/// One task: values whose words begin at number `first`.
struct Thin {
    key: u64,
    first: u64,
    dropped: u64,
    scale: f32,
}

compiled! {
    /// [`Thin::each`].
    fn dropout(thin: &Thin, out: &mut [f32], gate: Option<&[f32]>) = Thin::each;
}

impl Thin {
    #[inline(always)]
    fn each(&self, values: &mut [f32], gate: Option<&[f32]>) {
        match gate {
            None => self.groups::<false>(values, &[]),
            Some(gate) => self.groups::<true>(values, gate),
        }
    }

    #[inline(always)]
    fn groups<const GATED: bool>(&self, values: &mut [f32], gate: &[f32]) {
        let (groups, rest) = values.as_chunks_mut::<GROUP>();
        let (gates, rest_of_gate) = gate.as_chunks::<GROUP>();
        let count = groups.len();
        for (number, values) in groups.iter_mut().enumerate() {
            let gate = if GATED { &gates[number] } else { &[0.0; GROUP] };
            self.group::<GATED>(number, values, gate);
        }
        let (mut last, mut last_gate) = ([0.0; GROUP], [0.0; GROUP]);
        last[..rest.len()].copy_from_slice(rest);
        last_gate[..rest_of_gate.len()].copy_from_slice(rest_of_gate);
        self.group::<GATED>(count, &mut last, &last_gate);
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// Value `8 q + l` of a group is decided by bits `16 q` to `16 q + 15` of its word `l`. Nothing here branches.
    #[inline(always)]
    fn group<const GATED: bool>(&self, number: usize, values: &mut [f32; GROUP], gate: &[f32; GROUP]) {
        let first = self.first + (number * WORDS) as u64;
        let words: [u64; WORDS] = std::array::from_fn(|l| rng::at(self.key, first + l as u64));
        for q in 0..GROUP / WORDS {
            for l in 0..WORDS {
                let (value, gate) = (values[q * WORDS + l], gate[q * WORDS + l]);
                let dropped = ((words[l] >> (16 * q)) & 0xFFFF) < self.dropped;
                let shut = GATED && gate <= 0.0;
                values[q * WORDS + l] = if dropped | shut { 0.0 } else { value * self.scale };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::the_same_everywhere;

    fn chance(dropped: u16) -> Chance {
        Chance { seed: 7, dropped }
    }

    fn of_ones(count: usize, dropped: u16) -> Vec<f32> {
        let mut out = vec![0.0; count];
        dropout(Exec::serial(), &vec![1.0; count], &mut out, None, chance(dropped)).expect("sizes agree");
        out
    }

    #[test]
    fn shares_and_means_are_kept() {
        for dropped in [0, 6_554, 32_768, 58_982] {
            let values = of_ones(400_001, dropped);
            let zeros = values.iter().filter(|&&x| x == 0.0).count() as f64 / values.len() as f64;
            assert!((zeros - f64::from(dropped) / 65_536.0).abs() < 0.003, "{zeros}");
            let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
            assert!((mean - 1.0).abs() < 0.015, "{mean}");
        }
    }

    #[test]
    fn neighbours_are_independent() {
        let values = of_ones(1 << 20, 32_768);
        for lag in [1, 2, 7, 8, 16, 24, 32, 64] {
            let pairs = values.iter().zip(&values[lag..]);
            let both = pairs.filter(|(&x, &y)| x > 0.0 && y > 0.0).count() as f64 / (values.len() - lag) as f64;
            assert!((both - 0.25).abs() < 0.003, "{both} at {lag}");
        }
    }

    #[test]
    fn all_paths_and_threads_agree_with_the_definition() {
        for count in [0, 1, 31, 32, 33, 1_000, 3 * TASK + 5] {
            let numbers = |seed: u64| -> Vec<f32> {
                let word = |c| crate::rng::unit(crate::rng::at(seed, c)) as f32 - 0.5;
                (0..count as u64).map(word).collect()
            };
            let (values, gates) = (numbers(1), numbers(2));
            let all = of_ones(count, 20_000);
            for gate in [None, Some(&values[..]), Some(&gates[..])] {
                let open = |n: usize| gate.is_none_or(|gate| gate[n] > 0.0);
                let expected: Vec<f32> = (0..count)
                    .map(|n| if open(n) { all[n] * values[n] } else { 0.0 })
                    .collect();
                let found = the_same_everywhere(|exec| {
                    let mut out = vec![9.0; count];
                    dropout(exec, &values, &mut out, gate, chance(20_000)).expect("sizes agree");
                    out
                });
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn what_diverged_shows_and_sizes_must_agree() {
        let (values, mut out) = ([f32::NAN, -1.0, 2.0], [0.0; 3]);
        dropout(Exec::serial(), &values, &mut out, Some(&values), chance(0)).expect("sizes agree");
        assert!(out[0].is_nan());
        assert_eq!(out[1..], [0.0, 2.0]);
        assert!(dropout(Exec::serial(), &values[..2], &mut out, None, chance(0)).is_err());
        assert!(dropout(Exec::serial(), &values, &mut out, Some(&values[..2]), chance(0)).is_err());
    }
}
