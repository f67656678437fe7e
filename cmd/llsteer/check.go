package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/optimize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (p *program) check() *cobra.Command {
	var f jobFlags
	var precision precision
	cmd := &cobra.Command{
		Use:   "check -m MODEL [JOB] [--layer LAYERS]",
		Short: "compare gradients on this model with differences",
		Long: `Compares the gradient that optimize descends in, on this model with these weights,
with central differences of the loss: along the gradient and along random directions,
at each layer. Ends with code 1 if a relative error is above ` + fmt.Sprint(optimize.CheckTolerance) + `.

Without JOB and --prompt a small built-in example is used, and without a layer the
first and the middle one.`,
		Example: `  llsteer check -m demo
  llsteer check -m demo demo --layer all --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt),
		RunE: func(cmd *cobra.Command, args []string) error {
			job, err := p.job(cmd, &f, args)
			if err != nil {
				return err
			}
			if len(args) == 0 && len(job.Examples) == 0 {
				job.Examples = builtinExamples()
				job.Eps = 0 // no completion is so unlikely that its loss is flat
			}
			layersGiven := job.Layers.All || len(job.Layers.List) > 0
			if !layersGiven {
				job.Layers.List = []int{0} // until the model is known
			}
			job.Precision = precision.or(ggmlsteer.F32)
			if err := job.Validate(); err != nil {
				return err
			}
			m, err := p.open(cmd.Context(), &f.model)
			if err != nil {
				return err
			}
			defer m.Close()
			if err := f.startFits(m); err != nil {
				return err
			}
			info := m.Info()
			if middle := info.Layers / 2; !layersGiven && middle > 0 {
				job.Layers.List = append(job.Layers.List, middle)
			}
			return p.runCheck(cmd.Context(), m, job)
		},
	}
	f.add(cmd)
	f.model.add(cmd)
	addFlags(cmd, "Model", func(flags *pflag.FlagSet) { addPrecision(flags, &precision, precisionF32) })
	return cmd
}

// builtinExamples are what check uses where nobody gives an example.
func builtinExamples() []optimize.Example {
	return []optimize.Example{{Prompt: "The weather in the north is", Src: []string{" cold and grey."}, Dst: []string{" warm and sunny."}}}
}

// A checkReport is what check --json prints.
type checkReport struct {
	Layers         map[string]checkedLayer `json:"layers"` // by layer, or "shared"
	OK             bool                    `json:"ok"`
	Quantization   string                  `json:"quantization"`
	SecondsPerStep float64                 `json:"seconds_per_step"`
	PeakRSS        int64                   `json:"peak_rss_bytes"`
	tolerance      float64
}

type checkedLayer struct {
	GradientNorm  float64 `json:"gradient_norm"`
	RelativeError float64 `json:"relative_error"`
}

func (p *program) runCheck(ctx context.Context, m *ggmlsteer.Model, job *optimize.Job) error {
	layers, err := job.Layers.Resolve(m.Info().Layers)
	if err != nil {
		return err
	}
	total := len(layers)
	if job.Shared {
		total = 1
	}
	progress := p.newProgress(&total)
	var order []string
	checked, err := optimize.Check(ctx, m, job, func(layer string, c optimize.LayerCheck) {
		order = append(order, layer)
		state := fmt.Sprintf("layer %s  gradient norm %.4g  relative error %.1e", layer, c.GradientNorm, c.RelativeError)
		progress.show(len(order), state, state)
	})
	progress.done()
	if err != nil {
		return err
	}
	report := checkReport{map[string]checkedLayer{}, checked.OK(), m.Info().Quantization, checked.SecondsPerStep, peakRSS(), checked.Tolerance}
	for key, l := range checked.Layers {
		report.Layers[key] = checkedLayer(l)
	}
	if p.json {
		err = p.printJSON(report)
	} else {
		err = p.print(report.table(order))
	}
	if err == nil && !report.OK {
		err = exitStatus(exitFailed)
	}
	return err
}

// table is the report for people.
func (r checkReport) table(order []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%8s %14s %15s\n", "layer", "gradient norm", "relative error")
	for _, key := range order {
		l := r.Layers[key]
		fmt.Fprintf(&b, "%8s %14.6g %15.1e\n", key, l.GradientNorm, l.RelativeError)
	}
	verdict := "gradient and differences agree: no relative error is above %g"
	if !r.OK {
		verdict = "the gradient is wrong: a relative error is above %g"
	}
	fmt.Fprintf(&b, verdict+" (%s, %.2g s for a step)\n", r.tolerance, r.Quantization, r.SecondsPerStep)
	return b.String()
}
