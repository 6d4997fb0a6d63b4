//! How many tests run at the same time.

use super::cell::Cell;

/// Memory of a machine beside its RAM, in bytes: devices, the process, pages of tables.
const BESIDE: u64 = 64 << 20;

/// How many of `cells` run at the same time by themselves, at least one: as many as have a CPU of the host's for each of
/// their own (on the software CPU each is a busy thread), and memory, whichever of them they are.
pub fn jobs(cells: &[Cell], cpus: usize, memory: u64) -> usize {
    let of_cpus = fit(cells.iter().map(|cell| u64::from(cell.run.machine.cpus)), cpus as u64);
    let of_memory = fit(cells.iter().map(|cell| cell.run.machine.memory.0.saturating_add(BESIDE)), memory);
    of_cpus.min(of_memory).max(1)
}

/// How many of the largest `needs` fit into `all`.
fn fit(needs: impl Iterator<Item = u64>, all: u64) -> usize {
    let mut needs: Vec<_> = needs.collect();
    needs.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = all;
    needs.iter().take_while(|need| left.checked_sub(**need).inspect(|rest| left = *rest).is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunSpec;
    use crate::runner::config::What;
    use crate::spec::Size;

    fn cell(cpus: u32, memory: u64) -> Cell {
        let mut run = RunSpec::default();
        (run.machine.cpus, run.machine.memory) = (cpus, Size(memory));
        Cell::alone(run, What::Command)
    }

    #[test]
    fn as_many_as_the_host_can_hold() {
        let small = vec![cell(1, 1 << 30); 10];
        assert_eq!(jobs(&small, 4, 64 << 30), 4);
        assert_eq!(jobs(&small, 4, 3 << 30), 2);
        assert_eq!(jobs(&small, 100, 64 << 30), 10);
        assert_eq!(jobs(&small, 0, 0), 1);
        assert_eq!(jobs(&[], 4, 1 << 30), 1);
        assert_eq!(jobs(&[cell(1, 1 << 20), cell(4, 1 << 20), cell(1, 1 << 20)], 5, 1 << 30), 2);
    }
}
