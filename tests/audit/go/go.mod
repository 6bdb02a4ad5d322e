module appliance.example/logchecker

go 1.22

require golang.org/x/mod v0.0.0

// The packages that the go command itself is built from; scripts/build-log-checker copies them.
replace golang.org/x/mod => ./mod
