package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// growth brings up a crowd of pods again and again, and measures what the daemon needs: with the crowd there, and with
// nobody there after the first crowd and after the last. Peers are not asked: their pods take minutes.
func growth(ctx context.Context, b *bench) error {
	for _, c := range b.contenders {
		if c.name != meridian {
			continue
		}
		for crowd := range b.crowds {
			if err := come(ctx, b, c, crowd == 0); err != nil {
				return err
			}
			time.Sleep(6 * time.Second) // leftovers are given back every five
			if crowd == 0 || crowd == b.crowds-1 {
				b.report.value(fmt.Sprintf("daemon RSS after %d lifecycles, MB", (crowd+1)*b.crowd), c.name, resident(c))
			}
		}
	}
	return nil
}

// come brings up one crowd and takes it down.
func come(ctx context.Context, b *bench, c *contender, measured bool) (err error) {
	pods, err := many(ctx, c, b.crowd)
	defer func() { err = errors.Join(err, removeAll(ctx, pods)) }()
	if err != nil || !measured {
		return err
	}
	time.Sleep(6 * time.Second)
	b.report.value(fmt.Sprintf("daemon RSS at %d pods, MB", b.crowd), c.name, resident(c))
	return nil
}

func resident(c *contender) float64 { return float64(statusBytes(c.daemon, "VmRSS:")) / 1e6 }
