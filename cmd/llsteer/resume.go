package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
)

// A keeper keeps the state of an optimization in a file beside the steering that it is to
// write, and takes it up again for --resume. The file is a line that names it, with the sum of
// what follows, and a keptRun as JSON.
type keeper struct {
	p       *program
	path    string
	ctx     context.Context // whose end is the last moment to write
	found   keptRun         // what --resume goes on from; empty: nothing
	steps   []optimize.Step // found's and those since then
	written time.Time       // the last one, or the beginning
	pause   time.Duration   // before the next
}

// A keptRun is what the file holds.
type keptRun struct {
	Steps []optimize.Step // that were reported, without parameters and gradients
	Run   json.RawMessage // what optimize.RunFrom takes
}

const (
	stateEnding = ".state"
	stateTitle  = "llsteer state 1 " // ahead of the sum
	stateEvery  = time.Second
	stateShare  = 20 // a run writes states for at most one part in so many of its time
)

// newKeeper reads the state that a run for the steering out goes on from.
func (p *program) newKeeper(ctx context.Context, out string, resume bool) (*keeper, error) {
	k := &keeper{p: p, path: out + stateEnding, ctx: ctx, written: time.Now(), pause: stateEvery}
	data, err := os.ReadFile(k.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if resume {
			p.note("llsteer: there is no %s to go on from: the run begins", k.path)
		}
		return k, nil
	case err != nil:
		return nil, badInput("", "cannot read %s: %s", k.path, reason(err))
	case !resume:
		p.note("llsteer: %s is of an interrupted run and will be replaced; with --resume that run would go on", k.path)
		return k, nil
	}
	if err := k.parse(data); err != nil {
		return nil, &loader.InputError{Message: fmt.Sprintf("%s: %v", k.path, err), Hint: "without --resume the run begins anew"}
	}
	k.steps = k.found.Steps
	return k, nil
}

func (k *keeper) parse(data []byte) error {
	line, rest, _ := bytes.Cut(data, []byte("\n"))
	sum, isOurs := strings.CutPrefix(string(line), stateTitle)
	if !isOurs {
		return fmt.Errorf("expected the state of a run, which begins with %q, found %q", stateTitle, shortened(line, len(stateTitle)))
	}
	if found := sumOf(rest); sum != found {
		return fmt.Errorf("this state is damaged: expected the sum %s, found %s", shortened([]byte(sum), 64), found)
	}
	if err := json.Unmarshal(rest, &k.found); err != nil {
		return fmt.Errorf("this state is damaged: %w", err)
	}
	return nil
}

func shortened(text []byte, n int) string { return string(text[:min(len(text), n)]) }

func sumOf(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// step takes a report in.
func (k *keeper) step(s optimize.Step) {
	layers := make([]optimize.LayerStep, len(s.Layers))
	for i, l := range s.Layers {
		layers[i] = optimize.LayerStep{Layer: l.Layer, Norm: l.Norm, GradientNorm: l.GradientNorm}
	}
	s.Layers = layers
	k.steps = append(k.steps, s)
}

// keep writes the state if the last one is old enough, or the run is about to end. A state
// that cannot be written is no reason to end it.
func (k *keeper) keep(encode func() ([]byte, error)) {
	if k.ctx.Err() == nil && time.Since(k.written) < k.pause {
		return
	}
	began := time.Now()
	err := k.write(encode)
	k.written = time.Now()
	k.pause = max(stateEvery, stateShare*k.written.Sub(began))
	if err != nil {
		k.p.note("llsteer: the state of the run could not be written, and --resume will not have it: %v", err)
	}
}

func (k *keeper) write(encode func() ([]byte, error)) error {
	run, err := encode()
	if err != nil {
		return err
	}
	data, err := json.Marshal(keptRun{k.steps, run})
	if err != nil {
		return err
	}
	return writeFile(k.path, append([]byte(stateTitle+sumOf(data)+"\n"), data...))
}

// remove is for a run that has ended and left all that it was for.
func (k *keeper) remove() error {
	if err := os.Remove(k.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s cannot be removed: %s", k.path, reason(err))
	}
	return nil
}
