// The OpenTelemetry Collector's OTLP receiver, which writes what it gets as OTLP/JSON, a request a line:
//
//	receiver 127.0.0.1:4318 DIR     DIR/traces.json, DIR/metrics.json; until standard input ends
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

// lines appends to a file.
func lines(path string) func([]byte, error) error {
	var turn sync.Mutex
	return func(line []byte, err error) error {
		if err != nil {
			return err
		}
		turn.Lock()
		defer turn.Unlock()
		file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = file.Write(append(line, '\n'))
		return err
	}
}

func run(address, dir string) error {
	ctx := context.Background()
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig()
	protocols := map[string]any{"protocols": map[string]any{"http": map[string]any{"endpoint": address}}}
	if err := confmap.NewFromStringMap(protocols).Unmarshal(config); err != nil {
		return err
	}
	settings := receivertest.NewNopSettings(factory.Type())
	writeTraces, writeMetrics := lines(filepath.Join(dir, "traces.json")), lines(filepath.Join(dir, "metrics.json"))
	takeTraces, err := consumer.NewTraces(func(_ context.Context, traces ptrace.Traces) error {
		return writeTraces((&ptrace.JSONMarshaler{}).MarshalTraces(traces))
	})
	if err != nil {
		return err
	}
	takeMetrics, err := consumer.NewMetrics(func(_ context.Context, metrics pmetric.Metrics) error {
		return writeMetrics((&pmetric.JSONMarshaler{}).MarshalMetrics(metrics))
	})
	if err != nil {
		return err
	}
	// Both are one receiver: the factory shares it between signals of one configuration.
	traces, err := factory.CreateTraces(ctx, settings, config, takeTraces)
	if err != nil {
		return err
	}
	metrics, err := factory.CreateMetrics(ctx, settings, config, takeMetrics)
	if err != nil {
		return err
	}
	if err := traces.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}
	if err := metrics.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}
	fmt.Println("listening")
	_, err = io.Copy(io.Discard, os.Stdin)
	if err != nil {
		return err
	}
	return traces.Shutdown(ctx)
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: receiver ADDRESS DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
