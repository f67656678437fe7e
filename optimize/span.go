package optimize

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/loader"
)

// A Span selects tokens as Python's brackets do: an index, or a slice whose
// bounds are nil where they are left out. Negative numbers count from the end.
type Span struct {
	Start, Stop, Step *int
	Index             bool // the single token Start
}

const spanExpected = `expected an index such as -1, or a slice as Python writes it, such as "3:", ":-2" or "1:9:2"`

// ParseSpan reads "5", "-1", "3:", ":-2" or "1:9:2". What it cannot read is an
// *InputError that says what was expected.
func ParseSpan(s string) (*Span, error) {
	wrong := &loader.InputError{Message: fmt.Sprintf("%s, found %q", spanExpected, s)}
	parts := strings.Split(s, ":")
	span := &Span{Index: len(parts) == 1}
	for i, field := range []**int{&span.Start, &span.Stop, &span.Step} {
		if i >= len(parts) {
			break
		}
		text := strings.TrimSpace(parts[i])
		if text == "" && !span.Index {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, wrong
		}
		*field = &n
	}
	if len(parts) > 3 || span.Step != nil && *span.Step == 0 {
		return nil, wrong
	}
	return span, nil
}

// String is what ParseSpan reads.
func (s *Span) String() string {
	if s.Index {
		return strconv.Itoa(*s.Start)
	}
	text := bound(s.Start) + ":" + bound(s.Stop)
	if s.Step != nil {
		text += ":" + bound(s.Step)
	}
	return text
}

func bound(n *int) string {
	if n == nil {
		return ""
	}
	return strconv.Itoa(*n)
}

// validate refuses what ParseSpan cannot give.
func (s *Span) validate() error {
	if s.Index && (s.Start == nil || s.Stop != nil || s.Step != nil) || s.Step != nil && *s.Step == 0 {
		return errors.New(spanExpected)
	}
	return nil
}

// mask says which of n tokens are selected. As in Python slices clip, and an
// index that is out of range is an error.
func (s *Span) mask(n int) ([]bool, error) {
	mask := make([]bool, n)
	if s.Index {
		at := *s.Start
		if at < 0 {
			at += n
		}
		if at < 0 || at >= n {
			return nil, fmt.Errorf("index %d is out of range: prompt and completion have %d tokens", *s.Start, n)
		}
		mask[at] = true
		return mask, nil
	}
	step := 1
	if s.Step != nil {
		step = *s.Step
	}
	// the positions a bound may clip to: a slice that runs down ends before 0
	low, high := 0, n
	if step < 0 {
		low, high = -1, n-1
	}
	clip := func(bound *int, absent int) int {
		if bound == nil {
			return absent
		}
		at := *bound
		if at < 0 {
			at += n
		}
		return min(max(at, low), high)
	}
	start, stop := clip(s.Start, low), clip(s.Stop, high)
	if step < 0 {
		start, stop = clip(s.Start, high), clip(s.Stop, low)
	}
	for at := start; step > 0 && at < stop || step < 0 && at > stop; {
		mask[at] = true
		if step > n || step < -n { // at + step could overflow
			break
		}
		at += step
	}
	return mask, nil
}
