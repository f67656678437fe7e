package optimize

import (
	"context"
	"errors"

	"github.com/llsteer/llsteer/ggmlsteer"
)

// DefaultOptions are those of docs/steering.md.
func DefaultOptions() Options { return Options{} }

// Run optimizes. progress, if not nil, is called after every evaluation. When ctx is
// cancelled the result is the evaluated parameters of lowest total loss, with Stop StopInterrupted.
func Run(ctx context.Context, m *ggmlsteer.Model, job *Job, progress func(Step)) (*Result, error) {
	return nil, errors.New("not yet")
}

// ReadJob parses a job file, YAML or JSON; name is for error messages.
func ReadJob(name string, data []byte) (*Job, error) { return nil, errors.New("not yet") }

// ParseLayers reads "10", "3,7", "0-25" or "all".
func ParseLayers(s string) (Layers, error) { return Layers{}, errors.New("not yet") }

// Resolve returns the layers of a model with n blocks, ascending.
func (l Layers) Resolve(n int) ([]int, error) { return nil, errors.New("not yet") }

// A Span is a token index or slice as Python writes it.
type Span struct {
	Start, Stop, Step *int
	Index             bool // a single token, Start
}

func ParseSpan(s string) (*Span, error) { return nil, errors.New("not yet") }
