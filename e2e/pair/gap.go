package pair

import (
	"fmt"
	"time"
)

// Gap is one interruption that a tight loop over the clocks saw: how far each clock went on meanwhile.
type Gap struct {
	Monotonic, Boottime, Realtime time.Duration
}

// ParseGap reads a line of `clockwork tight`:
// "gap monotonic READING +DIFFERENCE boottime READING +DIFFERENCE realtime READING +DIFFERENCE", in nanoseconds.
func ParseGap(line string) (Gap, error) {
	var kind string
	var readings, differences [3]int64
	_, err := fmt.Sscanf(line, "%s monotonic %d %d boottime %d %d realtime %d %d", &kind,
		&readings[0], &differences[0], &readings[1], &differences[1], &readings[2], &differences[2])
	if err != nil {
		return Gap{}, fmt.Errorf("%q is not a gap: %w", line, err)
	}
	return Gap{time.Duration(differences[0]), time.Duration(differences[1]), time.Duration(differences[2])}, nil
}

// Largest is the gap with the largest difference in real time: the move, if there was one.
func Largest(gaps []Gap) Gap {
	var largest Gap
	for _, gap := range gaps {
		if gap.Realtime > largest.Realtime {
			largest = gap
		}
	}
	return largest
}
