package main

import (
	"fmt"
	"os"
	"time"

	"github.com/llsteer/llsteer/optimize"
	"github.com/schollz/progressbar/v3"
)

// A progress shows long work on standard error: a bar on a terminal, lines
// elsewhere.
type progress struct {
	total int // steps, or -1 where nobody knows
	from  int // steps that were done before the first was shown
	bar   *progressbar.ProgressBar
	began time.Time // when the first was shown
	shown time.Time // the last line
	last  string    // what a line would say, if it is not shown yet
}

// linesEvery is how many steps stand between two lines; a step that comes a
// second after the last line has one, too.
const linesEvery = 10

// newProgress is nil, which shows nothing, where the user wants quiet. total is
// how many steps there are at most, nil where nobody knows.
func (p *program) newProgress(total *int) *progress {
	if p.quiet {
		return nil
	}
	progress := &progress{total: -1}
	if total != nil {
		progress.total = *total
	}
	if isTerminal(os.Stderr) {
		progress.bar = progressbar.NewOptions(progress.total,
			progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionSetWidth(20),
			progressbar.OptionShowCount(),
			progressbar.OptionSetPredictTime(progress.total > 0),
			progressbar.OptionThrottle(50*time.Millisecond))
	}
	return progress
}

// step shows an evaluation of an optimization.
func (p *progress) step(s optimize.Step) {
	state := fmt.Sprintf("loss %.4f  %s", s.Loss, largestNorm(s.Layers))
	p.show(s.Iter, state, fmt.Sprintf("step %d  %s", s.Iter, state))
}

// show says how many steps are done: with state beside the bar, or with a line.
func (p *progress) show(done int, state, line string) {
	if p == nil {
		return
	}
	if p.began.IsZero() {
		p.from, p.began = done, time.Now()
	}
	if p.bar != nil {
		p.bar.Describe(state)
		p.bar.Set(done)
		return
	}
	p.last = line + p.left(done)
	if done%linesEvery == 0 || time.Since(p.shown) >= time.Second {
		p.flush()
	}
}

// done ends the bar, or shows the last line.
func (p *progress) done() {
	switch {
	case p == nil:
	case p.bar != nil:
		p.bar.Exit()
		fmt.Fprintln(os.Stderr)
	default:
		p.flush()
	}
}

func (p *progress) flush() {
	if p.last != "" {
		fmt.Fprintln(os.Stderr, p.last)
		p.last, p.shown = "", time.Now()
	}
}

// left is the time that remains if the steps go on as they did.
func (p *progress) left(done int) string {
	if p.total < 0 || done <= p.from || done >= p.total {
		return ""
	}
	left := time.Since(p.began) * time.Duration(p.total-done) / time.Duration(done-p.from)
	return fmt.Sprintf("  %v left", left.Round(100*time.Millisecond))
}

// largestNorm is the norm of the only vector, or the largest.
func largestNorm(layers []optimize.LayerStep) string {
	if len(layers) == 0 {
		return ""
	}
	top := layers[0]
	for _, l := range layers {
		if l.Norm > top.Norm {
			top = l
		}
	}
	if len(layers) == 1 {
		return fmt.Sprintf("norm %.2f", top.Norm)
	}
	return fmt.Sprintf("largest norm %.2f (layer %s)", top.Norm, top.Layer)
}
