import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.PrintStream;
import java.time.Instant;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * Debezium's embedded engine as a peer of the benchmarks: every change becomes JSON, is counted and thrown away.
 *
 * Arguments: host, port, database, slot, publication, events to wait for (0: until it is killed), then settings as name=value. Prints a line when
 * the first change comes, one when the last has come, and, without a number to wait for, one for each change of a table named
 * "payment": its key and the microseconds since the epoch at which it came.
 */
public final class Engine {
    private static long count;
    private static long first;

    public static void main(String[] arguments) throws Exception {
        long wanted = Long.parseLong(arguments[5]);
        Properties settings = new Properties();
        settings.setProperty("name", "peer");
        settings.setProperty("connector.class", "io.debezium.connector.postgresql.PostgresConnector");
        settings.setProperty("offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore");
        settings.setProperty("topic.prefix", "peer");
        settings.setProperty("database.hostname", arguments[0]);
        settings.setProperty("database.port", arguments[1]);
        settings.setProperty("database.dbname", arguments[2]);
        settings.setProperty("database.user", "postgres");
        settings.setProperty("database.password", "");
        settings.setProperty("plugin.name", "pgoutput");
        settings.setProperty("slot.name", arguments[3]);
        settings.setProperty("publication.name", arguments[4]);
        settings.setProperty("publication.autocreate.mode", "disabled");
        settings.setProperty("snapshot.mode", "no_data");
        settings.setProperty("key.converter.schemas.enable", "false");
        settings.setProperty("value.converter.schemas.enable", "false");
        settings.setProperty("converter.schemas.enable", "false");
        for (int i = 6; i < arguments.length; i++) {
            String[] pair = arguments[i].split("=", 2);
            settings.setProperty(pair[0], pair[1]);
        }
        PrintStream out = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), false);
        ExecutorService executor = Executors.newSingleThreadExecutor();
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class)
            .using(settings)
            .using((success, message, error) -> {
                System.err.println("ended: " + success + " " + message + " " + error);
                System.exit(success ? 0 : 1);
            })
            .notifying((List<ChangeEvent<String, String>> events, DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer) -> {
                Instant now = Instant.now();
                for (ChangeEvent<String, String> event : events) {
                    if (wanted == 0 && event.destination() != null && event.destination().endsWith(".payment") && event.key() != null) {
                        out.println("payment " + event.key().replaceAll("[^0-9]", "") + " " + (now.getEpochSecond() * 1_000_000 + now.getNano() / 1000));
                    }
                    committer.markProcessed(event);
                }
                committer.markBatchFinished();
                if (first == 0) {
                    first = System.nanoTime();
                    out.println("first");
                }
                out.flush();
                count += events.size();
                if (wanted > 0 && count >= wanted) {
                    out.println("last " + count + " " + (System.nanoTime() - first));
                    out.flush();
                    Runtime.getRuntime().halt(0);
                }
            })
            .build();
        executor.execute(engine);
    }
}
